"""The loops of a compiled kernel, read from its disassembly (cuobjdump -sass), and their instructions.

A loop is a natural loop of the control flow: the blocks from which a jump back to their dominator can be reached. So
blocks that the compiler has moved to the end of a kernel count with the loop that they belong to. Code for diverged
warps (BRA.DIV) and called functions (slow paths of divisions and square roots) count as never reached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;", re.M)
_JUMP = re.compile(r"\bBRA(?:\.\w+)*\s.*?\b0x([0-9a-f]+)")
_GUARD = re.compile(r"@!?U?P\d\s")
_ALWAYS = re.compile(r"BRA(?:\.\w+)* (?:`\(\S+\)|0x[0-9a-f]+)$")
_ENDS = re.compile(r"\b(?:EXIT|RET|BRX|JMX|BPT\.TRAP)\b")


@dataclass(frozen=True)
class Loop:
    """A loop. instructions: indices of all its instructions, with those of inner loops; depth: of its nesting."""

    instructions: frozenset[int]
    start: int
    depth: int


def instructions(code: str) -> list[tuple[int, str]]:
    """Address and text of every instruction in a kernel's listing."""
    return [(int(address, 16), text) for address, text in _INSTRUCTION.findall(code)]


def loops(code: str) -> list[Loop]:
    """Every loop reachable from the entry, sorted by the address of its first instruction."""
    successors = _successors(instructions(code))
    dominators = _dominators(successors)
    bodies: dict[int, set[int]] = {}
    predecessors = _predecessors(successors)
    for place, following in successors.items():
        for header in following:
            if dominators[place] >> header & 1:
                bodies.setdefault(header, {header}).update(_reaching(place, header, predecessors))
    return [
        Loop(frozenset(body), header, sum(header in other and header != first for first, other in bodies.items()))
        for header, body in sorted(bodies.items())
    ]


@dataclass(frozen=True)
class Turns:
    """(depth, turns each time that it is entered) for each loop by address, on average over warps.

    rare: for code inside loops that few turns reach, a pattern that only this code matches, and the share of turns.
    """

    loops: tuple[tuple[int, float], ...]
    rare: tuple[tuple[str, float], ...] = ()


def executed(code: str, choices: Sequence[Turns]) -> float:
    """Instructions that a warp executes, by the choice that has the same loops as the code.

    Both sides of every branch count as executed, except rare code. Raises ValueError if no choice has these loops, or
    if nothing matches a pattern.
    """
    listing, found = instructions(code), loops(code)
    shape = [loop.depth for loop in found]
    turns = next((choice for choice in choices if [depth for depth, _ in choice.loops] == shape), None)
    if turns is None:
        expected = " or ".join(str([depth for depth, _ in choice.loops]) for choice in choices)
        raise ValueError(f"found loops of depths {shape}, expected {expected}; declare the new loops")
    successors = _successors(listing)
    times = dict.fromkeys(successors, 1.0)
    for loop, (_, count) in zip(found, turns.loops, strict=True):
        for place in loop.instructions:
            times[place] *= count
    for pattern, share in turns.rare:
        for place in _region(pattern, listing, successors, found):
            times[place] *= share
    return sum(times.values())


def _region(
    pattern: str, listing: list[tuple[int, str]], successors: dict[int, list[int]], found: list[Loop]
) -> set[int]:
    """Instructions reached only through the first branch that leads to all matches of a pattern in loops."""
    inside = set[int]().union(*(loop.instructions for loop in found))
    matching = [place for place in inside if re.search(pattern, listing[place][1])]
    if not matching:
        raise ValueError(f"no instruction in a loop matches {pattern!r}; declare the rare code again")
    dominators, predecessors = _dominators(successors), _predecessors(successors)
    common = dominators[matching[0]]
    for place in matching:
        common &= dominators[place]
    entry = max((p for p in successors if common >> p & 1), key=lambda p: dominators[p].bit_count())
    while len(before := predecessors[entry]) == 1 and len(successors[before[0]]) == 1:
        entry = before[0]
    return {place for place in inside if dominators[place] >> entry & 1}


def _successors(listing: list[tuple[int, str]]) -> dict[int, list[int]]:
    """Index of every reachable instruction -> indices of the instructions that may follow it."""
    place_of = {address: place for place, (address, _) in enumerate(listing)}
    following: dict[int, list[int]] = {}
    for place, (_, text) in enumerate(listing):
        after = [place + 1] if place + 1 < len(listing) else []
        guarded = _GUARD.match(text) is not None
        jump = _JUMP.search(text)
        if jump is not None and ".DIV" not in text and int(jump[1], 16) in place_of:
            target = place_of[int(jump[1], 16)]
            following[place] = [target] if _ALWAYS.match(text) else [*after, target]
        elif _ENDS.search(text) and not guarded:
            following[place] = []
        else:
            following[place] = after
    reached = _reached(following)
    return {place: targets for place, targets in following.items() if place in reached}


def _reached(following: dict[int, list[int]]) -> set[int]:
    seen, waiting = set(), [0] if following else []
    while waiting:
        place = waiting.pop()
        if place not in seen:
            seen.add(place)
            waiting += following[place]
    return seen


def _predecessors(successors: dict[int, list[int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {place: [] for place in successors}
    for place, following in successors.items():
        for target in following:
            found[target].append(place)
    return found


def _dominators(successors: dict[int, list[int]]) -> dict[int, int]:
    """The dominators of every instruction, as the bits of a number."""
    predecessors = _predecessors(successors)
    everything = (1 << (max(successors, default=0) + 1)) - 1
    found = dict.fromkeys(successors, everything)
    changed = True
    while changed:
        changed = False
        for place in sorted(successors):
            common = everything if place else 0
            for before in predecessors[place]:
                common &= found[before]
            common |= 1 << place
            if common != found[place]:
                found[place], changed = common, True
    return found


def _reaching(place: int, header: int, predecessors: dict[int, list[int]]) -> set[int]:
    seen: set[int] = set()
    waiting = [place]
    while waiting:
        here = waiting.pop()
        if here != header and here not in seen:
            seen.add(here)
            waiting += predecessors[here]
    return seen
