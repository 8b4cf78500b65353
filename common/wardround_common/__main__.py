"""`python -m wardround_common` is `wardround`, for places where the script is not on the path."""

from wardround_common.cli import main

main()
