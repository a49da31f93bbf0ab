data "aws_partition" "current" {}
data "aws_region" "current" {}
data "aws_caller_identity" "current" {}

locals {
  # The attribute's name differs between versions 5 and 6 of the provider. `try` would not help: Terraform refuses an attribute that
  # the provider does not have before it evaluates anything. Of an object as a whole it asks for no attribute.
  region = coalesce(lookup(data.aws_region.current, "region", ""), lookup(data.aws_region.current, "name", ""))

  layer_arn = var.layer_arn != null ? var.layer_arn : one(aws_lambda_layer_version.plungepool[*].arn)

  environment = merge(
    {
      PLUNGEPOOL_HOST     = var.host
      PLUNGEPOOL_PORT     = tostring(var.port)
      PLUNGEPOOL_DATABASE = var.database
      PLUNGEPOOL_ENDPOINT = var.endpoint
      PLUNGEPOOL_AUTH     = var.auth
    },
    # A secret holds its user.
    var.auth == "iam" ? { PLUNGEPOOL_USER = var.user } : { PLUNGEPOOL_SECRET_ARN = var.secret_arn },
    var.settings,
  )

  dbuser = "arn:${data.aws_partition.current.partition}:rds-db:${local.region}:${data.aws_caller_identity.current.account_id}:dbuser:${coalesce(var.resource_id, "missing")}/${var.user}"
}

resource "aws_lambda_layer_version" "plungepool" {
  count = var.layer_arn == null ? 1 : 0

  # Without compatible_runtimes, which is for display only: each version of the provider refuses runtimes newer than itself.
  layer_name               = var.name
  description              = "Plungepool with SQLAlchemy and pg8000"
  filename                 = var.layer_zip
  source_code_hash         = var.layer_zip == null ? null : filebase64sha256(var.layer_zip)
  compatible_architectures = ["x86_64", "arm64"]
  license_info             = "Apache-2.0"
  # Functions of other stacks may use this version by its ARN.
  skip_destroy = true

  lifecycle {
    precondition {
      condition     = var.layer_zip != null
      error_message = "Give layer_zip or layer_arn."
    }
  }
}

data "aws_iam_policy_document" "connect" {
  statement {
    sid       = "Connect"
    actions   = [var.auth == "iam" ? "rds-db:connect" : "secretsmanager:GetSecretValue"]
    resources = [var.auth == "iam" ? local.dbuser : var.secret_arn]
  }

  lifecycle {
    precondition {
      condition     = var.auth == "iam" ? var.resource_id != null : var.secret_arn != null
      error_message = "auth iam needs resource_id, and auth secret needs secret_arn."
    }
  }
}

resource "aws_iam_policy" "connect" {
  name_prefix = "${var.name}-connect-"
  description = "Connect to PostgreSQL as ${var.user}"
  policy      = data.aws_iam_policy_document.connect.json
}
