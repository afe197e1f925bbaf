"""Studies: a question, rows that differ in a few settings, several seeds, and a page that shows the table."""
