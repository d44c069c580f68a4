"""Back-tests of `labelcurve plan`: what it would have answered where the truth is known."""
