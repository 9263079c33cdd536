"""Decisions of people and models about labelled pictures, and how alike they are; numpy, scipy and pandas, no pictures."""
