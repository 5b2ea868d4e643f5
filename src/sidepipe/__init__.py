"""sidepipe asks a diffusion model which of its training images it gives away.

The open implementation of SIDE (Chen et al., "SIDE: Surrogate Conditional Data Extraction from
Diffusion Models", arXiv 2410.02467). Read `graph.py` for the graph of stages, then the stage
packages in flow order: data, dpm, generate, label, classifier, extract, evaluate, report.
"""

from sidepipe.base.openmp import spin_briefly

spin_briefly()
