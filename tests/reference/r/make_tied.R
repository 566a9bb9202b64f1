# Writes fixtures/tied.csv: a synthetic cohort with heavily tied times, four categories, three strata, a competing event
# and case weights. Run from tests/reference: Rscript r/make_tied.R
set.seed(20250101)
n <- 400
age <- round(rnorm(n, 60, 9), 1)
true_code <- pmin(pmax(round(rnorm(n, (age - 45) / 15, 1)), 0), 3)
predicted_code <- pmin(pmax(true_code + sample(-1:1, n, TRUE, c(.2, .6, .2)), 0), 3)
stratum <- sample(0:2, n, TRUE, c(.5, .3, .2))
hazard <- .02 * exp(.5 * true_code + .03 * (age - 60) + .3 * stratum)
event_time <- ceiling(rexp(n, hazard) / 2) * 2
other_time <- ceiling(rexp(n, .008) / 2) * 2
censor_time <- ceiling(runif(n, 1, 60))
time <- pmin(event_time, other_time, censor_time)
status <- ifelse(event_time == time, 1, ifelse(other_time == time, 2, 0))
disease <- as.integer(true_code >= 2)
score_a <- round(plogis(-1 + 1.3 * disease + rnorm(n)), 2)
score_b <- round(plogis(-1 + .8 * disease + .5 * qlogis(pmin(pmax(score_a, .01), .99)) + rnorm(n)), 2)
weight <- sample(c(.5, 1, 1.5, 2, 3), n, TRUE)
write.csv(
  data.frame(time, status, true_code, predicted_code, stratum, age, weight, disease, score_a, score_b),
  "fixtures/tied.csv", row.names = FALSE, quote = FALSE
)
