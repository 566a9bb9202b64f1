# Writes values/discrimination.json. Run from tests/reference: Rscript r/discrimination.R
suppressMessages({library(pROC); library(jsonlite); library(splines)})
tied <- read.csv("fixtures/tied.csv")
y <- tied$disease
out <- list()

curve <- function(score) roc(y, score, direction = "<", quiet = TRUE)
area <- function(score) list(auc = as.numeric(auc(curve(score))), ci = as.numeric(ci.auc(curve(score), method = "delong"))[c(1, 3)])
out$auc_a <- area(tied$score_a)
out$auc_b <- area(tied$score_b)
test <- roc.test(curve(tied$score_a), curve(tied$score_b), method = "delong", paired = TRUE)
out$paired <- list(ci = as.numeric(test$conf.int), p = unname(test$p.value), z = unname(test$statistic))

# The curve at 101 specificities; its stratified bootstrap with more replicates than the tool takes.
percent <- (0:100) / 100
set.seed(1)
out$roc_a <- list(
  sensitivity = coords(curve(tied$score_a), x = percent, input = "specificity", ret = "sensitivity")$sensitivity,
  bounds = unname(ci.se(curve(tied$score_a), specificities = percent, boot.n = 20000, progress = "none")[, c(1, 3)]))

wilson <- function(k, n) c(k / n, as.numeric(prop.test(k, n, correct = FALSE)$conf.int))
out$wilson <- list(k = c(0, 3, 10, 81, 5), n = c(10, 10, 10, 263, 1000),
                   rows = mapply(function(k, n) suppressWarnings(wilson(k, n)), c(0, 3, 10, 81, 5), c(10, 10, 10, 263, 1000),
                                 SIMPLIFY = FALSE))

p <- pmin(pmax(tied$score_a, 1e-6), 1 - 1e-6)
x <- qlogis(p)
tight <- glm.control(epsilon = 1e-15, maxit = 100)
wald <- function(fit) {
  row <- summary(fit)$coefficients
  row <- row[nrow(row), ]
  unname(c(row[1], row[1] + c(-1, 1) * qnorm(.975) * row[2]))
}
knots <- quantile(x, c(.05, .35, .65, .95))
smooth <- glm(y ~ ns(x, knots = knots[2:3], Boundary.knots = knots[c(1, 4)]), family = binomial, control = tight)
ratio <- sum(y) / sum(p)
grid <- (5:90) / 100
band <- predict(smooth, data.frame(x = qlogis(grid)), se.fit = TRUE)
out$calibration <- list(
  observed_expected = ratio * exp(c(0, -1, 1) * qnorm(.975) * sqrt(1 / sum(y) - 1 / length(y))),
  intercept = wald(glm(y ~ 1, offset = x, family = binomial, control = tight)),
  slope = wald(glm(y ~ x, family = binomial, control = tight)),
  curve = plogis(cbind(band$fit, band$fit - qnorm(.975) * band$se.fit, band$fit + qnorm(.975) * band$se.fit)),
  ici = mean(abs(p - fitted(smooth))), brier = mean((y - tied$score_a)^2))

# Weighted kappa; its standard error by the delta method on the multinomial counts, derivatives by complex steps, which
# shares no formula with Fleiss, Cohen and Everitt.
kappa <- function(counts, power) {
  k <- nrow(counts)
  w <- 1 - (abs(outer(1:k, 1:k, "-")) / (k - 1))^power
  value <- function(p) {
    p <- matrix(p, k)
    expected <- sum(w * outer(rowSums(p), colSums(p)))
    (sum(w * p) - expected) / (1 - expected)
  }
  p <- c(counts) / sum(counts)
  slope <- sapply(seq_along(p), function(i) { q <- as.complex(p); q[i] <- q[i] + 1e-30i; Im(value(q)) / 1e-30 })
  variance <- (sum(p * slope^2) - sum(p * slope)^2) / sum(counts)
  c(value(p), sqrt(variance))
}
counts <- unclass(table(factor(tied$true_code, 0:3), factor(tied$predicted_code, 0:3)))
out$kappa <- list(linear = kappa(counts, 1), quadratic = kappa(counts, 2), accuracy = wilson(sum(diag(counts)), sum(counts)))
out$versions <- list(R = R.version.string, pROC = as.character(packageVersion("pROC")))
write_json(out, "values/discrimination.json", digits = I(17), auto_unbox = TRUE, na = "null")
