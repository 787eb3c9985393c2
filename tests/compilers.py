"""Compilers that tests of written C and Fortran use. A contributor may lack them; `.ci/run` installs gfortran."""

import shutil

import pytest

# Optional: nothing of the library is built with it, and only whoever calls the library from Fortran has it.
needs_gfortran = pytest.mark.skipif(not shutil.which("gfortran"), reason="needs gfortran (apt-get install gfortran)")
