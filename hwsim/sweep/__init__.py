"""Studies: a space of design points, evaluated once each, in a store that survives being killed."""
