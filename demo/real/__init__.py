"""``python -m demo.real --packages DIR --out DIR``: records of real pictures with human texts, from four sources and maps.

======================  =====================================================  ==========================================
source                  package                                                licence
======================  =====================================================  ==========================================
``stamps``              apt: tuxpaint-stamps-default                           GPL-2
``emoji_google``        npm: emoji-datasource-google                           Apache-2.0 (pictures), MIT (package)
``emoji_fluent``        npm: @lobehub/fluent-emoji-3d                          MIT
names of emoji          npm: cldr-annotations-full,                            Unicode-3.0
                        cldr-annotations-derived-full
``clipart``             apt: openclipart-png, openclipart-svg                  public domain
``maps``                apt: kgeography-data                                   GPL-2 or later
======================  =====================================================  ==========================================

Install them, ship none of them. ``--packages`` is a folder with the .tgz files of ``npm pack`` and, unless the Debian packages
are installed, with what ``dpkg-deb -x`` unpacks (``usr/share/…``); docs/real_model.md has the commands.

One split by concept holds for all sources (:mod:`demo.real.concepts`): no name and no picture of a held-out record is in
training. Each source has its own validation and test files; composites of cut-outs, and maps, have boxes.
"""
