"""The values that flow through dacconv, and the algebra and the costs of convs."""
