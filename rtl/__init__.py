"""The hardware as gates (Amaranth): one file a unit, of the same name as its model, made from the model's params."""
