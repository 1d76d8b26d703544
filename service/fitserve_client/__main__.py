"""`python -m fitserve_client` is `fitserve-client`."""

import sys

from fitserve_client.cli import main

sys.exit(main())
