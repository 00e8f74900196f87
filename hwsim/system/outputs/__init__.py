"""What a run leaves: tables, CSV files, a trace and a page."""
