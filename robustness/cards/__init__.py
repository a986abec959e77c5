"""Cards of zoo entries: measured and proved on whole test sets, and the page that says so."""
