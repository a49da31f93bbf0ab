output "layer_arn" {
  description = "ARN of the layer's version, for the function's `layers`."
  value       = local.layer_arn
}

output "environment" {
  description = "Settings, for the function's `environment`; merge them with the function's own variables."
  value       = local.environment
}

output "policy_arn" {
  description = "ARN of the policy that lets a function connect, to attach to its role."
  value       = aws_iam_policy.connect.arn
}
