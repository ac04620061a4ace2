"""One function per figure."""

from tokenskip_lib.core.plugins import need

need("matplotlib", "figures")
need("seaborn", "figures")
