"""What no render needs: training, evaluation, the study and the benchmark. The product never imports it."""
