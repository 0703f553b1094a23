"""Write the golden files anew: python -m tests.golden.make"""

from pathlib import Path

from tests.samples import all_samples

for kind, data in all_samples().items():
    (Path(__file__).parent / f"v0.{kind}").write_bytes(data)
