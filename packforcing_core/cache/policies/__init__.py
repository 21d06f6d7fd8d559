"""The cache policies, one file each: knobs, plan, and the rule by which the past is chosen or changed."""
