"""Studies: one question, a table of rows that differ in a few settings, several seeds, and the page that shows them."""
