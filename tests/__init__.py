import os

# Processes side by side with a thread for each core wait for one another, spinning. Set before
# anything imports NumPy or scikit-learn, whose libraries read it when they are loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
