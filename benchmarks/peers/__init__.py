"""`bench peers`: this service beside others, over the same model."""
