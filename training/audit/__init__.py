"""Methods of `audit`: doubtful labels, near-duplicates, empty images, and its page. No torch."""
