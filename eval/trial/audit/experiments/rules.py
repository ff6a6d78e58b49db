"""The rules that a finding of an experiment names."""

RULE_CONTRACT = "scoring contract"
RULE_FUTURE = "a score may depend only on the artifact and the tokens before it"
RULE_FRESH = "each stream is scored from a fresh state, and twice gives the same"
RULE_SUM = "the next-token probabilities sum to one"
RULE_ROW = "the score is -ln of the probability that the distribution gives to the token"
RULE_TOKEN = "a token may not influence its own probability"
RULE_PROBES = "asking for a distribution must not change a score"

RULE_CANARY = (
    "a probability measure gains k bits on text of known probability with probability at most 2^-k"
)
