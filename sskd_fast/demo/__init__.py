"""A local page that shows teacher and student side by side: `python -m sskd_fast.demo RUN`."""
