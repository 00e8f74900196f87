"""A whole accelerator: memory, DMA, scratchpads and engines under one clock, on which a layer graph runs."""
