"""CRaFT: anchors that hold on to what a policy knew, and gradients that do not undo it."""
