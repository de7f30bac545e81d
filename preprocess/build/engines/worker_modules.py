"""The modules that every worker needs. The fork server imports them once, for all workers."""

import awkward  # noqa: F401
import gigatoken  # noqa: F401

import preprocess.build.prepare  # noqa: F401
