"""An elastic byte-level Llama: states of AdamW, bits of the weights, sub-spaces and a teacher."""
