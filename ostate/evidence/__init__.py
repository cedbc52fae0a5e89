"""What the numbers of a checkpoint prove about an order. The mathematics is in docs/evidence.md.

| letter | meaning | shape |
|---|---|---|
| n, r | length of a factor's columns or rows; rank, the number of latent dimensions | |
| A, B | the two factors of a LoRA module, the layer's weight is W0 + s B A | (r, in), (out, r) |
| zero factor | the one that starts at zero: B, for embeddings A; written (n, r) | (n, r) |
| other factor | the one that starts at random; written (r, n) | (r, n) |
| m, v, u | first moment, second moment, m_hat / (sqrt(v_hat) + eps): the direction of Adam's last update | as the factor |
| k, p | count of adapter keys, count of positions in the state | |
| g | a gauge: a signed permutation of latent dimensions | (r, r) |
| D | -B^T u_B: displacement along the updates (weight's latent dimension, moment's) | (r, r) |
| L | B^T m_B: one side of balance (weight's, moment's) | (r, r) |
| R | m_A A^T: the other side (moment's, weight's) | (r, r) |
| b | a block of latent dimensions within which g may act | |
| rank of a statistic | elements of a group whose statistic is at least the identity's; uniform over 1 … size under the null | |
| e, w | an e-value: nonnegative, mean at most 1 under the null; w = 1 / e | |
"""
