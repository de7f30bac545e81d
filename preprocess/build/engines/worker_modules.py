"""What a worker needs, imported once by the server that workers are forked from: half a second that each would take otherwise."""

import awkward  # noqa: F401
import gigatoken  # noqa: F401

import preprocess.build.prepare  # noqa: F401
