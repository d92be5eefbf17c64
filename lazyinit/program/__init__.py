"""An initialization becomes equations here, and each leaf gets those that it needs.

In comes a function from keys to arrays; out come a ``Program`` of numbered values and, for each
leaf, a slice of it. ``tracing`` traces the function once, in the steps that eager JAX takes.
``equations`` holds the result. ``slices`` collects what some leaves need, and ``separable`` says
which results of an equation can be made without the others at no change of their bits.
``fingerprint`` compares equations by what they compute, so that equal layers share a program.
"""
