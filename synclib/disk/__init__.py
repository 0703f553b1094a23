"""Local files: scanning, writing safely, state, markers."""
