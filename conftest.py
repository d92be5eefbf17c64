"""Every test, doctests and README snippets too, runs on eight CPU devices."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)

# No deadline: a first example compiles, and machines are shared.
hypothesis.settings.register_profile("lazyinit", deadline=None)
hypothesis.settings.load_profile("lazyinit")
