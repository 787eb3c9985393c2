"""The same threads and the same core for all contenders, set before any of them is imported."""

import machine

machine.pin()
