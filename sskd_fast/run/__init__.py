"""A run: `python -m sskd_fast.run --stage all` adapts the teacher, distils it into the student, refines the student."""
