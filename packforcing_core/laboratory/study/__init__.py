"""The study: many policies with the same prompts and seeds, measured by the exact checker."""
