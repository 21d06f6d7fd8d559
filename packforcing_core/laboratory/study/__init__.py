"""Which policy helps, and how much: the same prompts and seeds under many policies, measured by the exact checker."""
