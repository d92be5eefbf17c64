"""An initialization as equations, and what each leaf needs of them."""
