"""Process groups: start one, know it by its marks, end it whole."""
