"""Builds the module `pendulum` against the installed cnn: its .pxd is found as Cython finds any, its header here."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import cnn

setup(ext_modules=cythonize([Extension("pendulum", ["pendulum.pyx"], include_dirs=[cnn.get_include()])]))
