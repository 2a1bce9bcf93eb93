"""What may not enter and what may not leave: personal data, denied words, what a classifier flags."""
