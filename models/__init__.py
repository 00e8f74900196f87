"""The hardware as numbers: one file a unit, each bit-exact (`golden`) and cycle-exact (`timing`, `trace`)."""
