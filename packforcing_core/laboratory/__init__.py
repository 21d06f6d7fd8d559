"""Training, evaluation, the study and the benchmark. No render needs them, and the product never imports them."""
