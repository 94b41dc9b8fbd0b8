import sys

from saf_jax.cli import main

sys.exit(main())
