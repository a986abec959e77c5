"""A small suite that runs in seconds and touches every kind of job."""

SUITE = """
name = "small"
data = "digits"
samples = 24
models = ["digits/resnet", "digits/lyanet-certified"]
certificates = ["lyapunov", "target-seeking"]
audit = { samples = 1, largest = 1 }
[[threats]]
norm = "Linf"
eps = [0.05, "25.5/255"]
[[threats]]
norm = "L2"
eps = [0.25, 0.5]
[[attacks]]
kind = "fgsm"
[[attacks]]
kind = "pgd"
steps = 4
samples = 12
"""
