#!/usr/bin/env bash
# Runs the README's commands other than predict and export on a finished run: `commands.sh RUN FOLDER`.
run=$1 folder=$2
sskd evaluate "$run" --val "$run/data/val.json" --images "$run/data/val" --json "$folder/figures.json"
python - "$run" "$folder/figures.json" <<'END'
import json, sys
rows = {row["name"]: row for row in json.load(open(f"{sys.argv[1]}/metrics.json"))["rows"]}
found, expected = json.load(open(sys.argv[2]))["ap"], rows["refined_student"]["ap"]
assert found == expected, f"sskd evaluate: found {found} AP, expected {expected} as in metrics.json"
END
sskd check "$run/data/labeled.json" --images "$run/data/labeled"
sskd rank "$run" "$run/data/val" --top 20 --output "$folder/next"
test -s "$folder/next/prelabels.json"
sskd report "$run"
sskd info
