"""`labelcurve bench peers`: this service compared with others, with the same model."""
