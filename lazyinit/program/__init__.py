"""An initialization becomes equations here, and each leaf gets those that it needs.

A function from keys to arrays comes in; a ``Program`` of numbered values goes out, and for each
leaf a slice of it. The one idea is that a slice, run step by step, gives the bits of the whole.
``tracing`` traces the function once, in the steps that eager JAX takes. ``equations`` holds the
result, and ``ancestry`` walks back through it. ``slices`` collects the equations that some leaves
need, and ``small_values`` computes the keys and scalars among their values. ``separable`` tells
whether some results of an equation can be made without the others, with the same bits. If one
result of a ``jit`` or a ``scan`` is read from a file, ``behind`` computes the results that depend
on it. ``partwise`` runs equations on the part of an array that a device holds. ``stored`` turns
slices that only move and cast what a checkpoint holds into sources.

Programs are compared in three ways. ``fingerprint`` tells equations of this process apart by what
they compute, so that equal layers share a compiled program. ``meaning`` tells what one leaf is
computed by, so that two recordings of a model are equal. ``stable`` writes a program as bytes that
are the same in every process, so that hosts can agree.
"""
