"""A worker's process: BentoML's own, with the models loading while BentoML is imported."""

from __future__ import annotations

import gc

from serving import deferred


def main() -> None:
    """What the supervisor runs, with the arguments of BentoML's worker."""
    gc.disable()  # what is imported stays; the service turns it on when the models are loaded
    deferred.defer()
    from serving import loading

    loading.begin()
    from _bentoml_impl.worker.service import main

    main()


if __name__ == "__main__":
    main()
