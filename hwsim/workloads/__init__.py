"""Networks as layer graphs: importers, a zoo of published shapes, and rewrites."""
